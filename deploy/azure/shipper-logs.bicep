// A table of an existing Log Analytics workspace for the sink azure_logs, the data collection rule that fills it, and
// the role that lets an identity send to the rule.
//
//   az deployment group create -g <resource group of the workspace> -f shipper-logs.bicep \
//     -p workspaceName=<workspace> senderId=<object id of the application or managed identity>
//
// The outputs are the sink's options endpoint, rule_id, stream and workspace_id.

@description('The Log Analytics workspace, in this resource group.')
param workspaceName string

@description('Object id of the service principal or managed identity that sends. Empty: assign the role yourself.')
param senderId string = ''

@description('Also let that identity read the workspace (shipper query).')
param letSenderRead bool = false

@description('Region of the rule: that of the workspace.')
param location string = resourceGroup().location

@description('Name of the table, ending in _CL.')
param tableName string = 'Shipper_CL'

@description('Days that rows are kept.')
param retentionDays int = 30

var columns = [
  { name: 'TimeGenerated', type: 'datetime' }
  { name: 'EventTime', type: 'datetime' }
  { name: 'TimeNs', type: 'string' }
  { name: 'RecordId', type: 'string' }
  { name: 'Level', type: 'string' }
  { name: 'Severity', type: 'int' }
  { name: 'Message', type: 'string' }
  { name: 'Attributes', type: 'dynamic' }
  { name: 'Service', type: 'string' }
  { name: 'Container', type: 'string' }
  { name: 'Stream', type: 'string' }
  { name: 'Host', type: 'string' }
  { name: 'Source', type: 'string' }
  { name: 'Resource', type: 'dynamic' }
  { name: 'Part', type: 'int' }
  { name: 'Parts', type: 'int' }
  { name: 'Rest', type: 'string' }
]
// Monitoring Metrics Publisher, and Log Analytics Data Reader.
var publisher = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '3913510d-42f4-4e42-8a64-420c390055eb')
var reader = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '3b03c2da-16b3-4a49-8834-0f8130efdd3b')

resource workspace 'Microsoft.OperationalInsights/workspaces@2022-10-01' existing = {
  name: workspaceName
}

resource table 'Microsoft.OperationalInsights/workspaces/tables@2022-10-01' = {
  parent: workspace
  name: tableName
  properties: {
    plan: 'Analytics'
    retentionInDays: retentionDays
    schema: { name: tableName, columns: columns }
  }
}

resource rule 'Microsoft.Insights/dataCollectionRules@2023-03-11' = {
  name: 'shipper-logs'
  location: location
  kind: 'Direct' // with an endpoint of its own
  properties: {
    streamDeclarations: {
      'Custom-${tableName}': { columns: columns }
    }
    destinations: {
      logAnalytics: [{ name: 'workspace', workspaceResourceId: workspace.id }]
    }
    dataFlows: [
      {
        streams: ['Custom-${tableName}']
        destinations: ['workspace']
        outputStream: 'Custom-${tableName}'
        transformKql: 'source'
      }
    ]
  }
  dependsOn: [table]
}

resource mayPublish 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(senderId)) {
  name: guid(rule.id, senderId, publisher)
  scope: rule
  properties: { principalId: senderId, principalType: 'ServicePrincipal', roleDefinitionId: publisher }
}

resource mayRead 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(senderId) && letSenderRead) {
  name: guid(workspace.id, senderId, reader)
  scope: workspace
  properties: { principalId: senderId, principalType: 'ServicePrincipal', roleDefinitionId: reader }
}

output endpoint string = rule.properties.endpoints.logsIngestion
output rule_id string = rule.properties.immutableId
output stream string = 'Custom-${tableName}'
output workspace_id string = workspace.properties.customerId
